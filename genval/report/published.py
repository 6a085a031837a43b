"""Values reported for the published system. A secondary source gives them, not the paper's own tables."""

from __future__ import annotations

from genval.report.schema import Published

PUBLISHED = Published(
    source="secondary: as reported for the published system, not read from the paper's own tables",
    models=40,
    pearson={
        "SD 1.5": {"night": 0.85, "rain": 0.86, "snow": 0.85, "fog": 0.77, "india": 0.71},
        "SDXL": {"night": 0.84, "rain": 0.90, "snow": 0.82, "fog": 0.89, "india": 0.93},
    },
    ece_improved_percent={
        "india": "72.5",
        "fog": "over 90",
        "night": "over 90",
        "rain": "over 90",
        "snow": "over 90",
    },
    ood_pearson="about 0.8",
)
