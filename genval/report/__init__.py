"""From results folders to the answer: how far can the synthetic verdict be trusted?

`report/correlate.py` writes `correlation.json`, which report/tables.py and report/make_report.py read.
`genval.report.schema` describes its content, one frozen dataclass per object; `genval.report.study` computes it.
"""

# The share of the generated images that a second temperature is found on: see `evaluation.calibration.hardest_images`.
HARDEST_SHARE = 0.5
