"""Values reported for the published system. A secondary source gives them, not the paper's own tables."""

from __future__ import annotations

from genval.report.schema import Published, PublishedDetector

PUBLISHED = Published(
    source="values reported for the published system, from a secondary source, not from the paper's own tables",
    models=40,
    pearson={
        "SD 1.5": {"night": 0.85, "rain": 0.86, "snow": 0.85, "fog": 0.77, "india": 0.71},
        "SDXL": {"night": 0.84, "rain": 0.90, "snow": 0.82, "fog": 0.89, "india": 0.93},
        "TSIT (GAN, trained on the domains)": {"night": 0.83, "rain": 0.84, "snow": 0.81},
        "fog simulation": {"fog": 0.82},
    },
    ece_improved_percent={
        "india": "72.5",
        "fog": "over 90",
        "night": "over 90",
        "rain": "over 90",
        "snow": "over 90",
    },
    ood_pearson="about 0.8",
    detectors=[
        PublishedDetector(f"RbA, {backbone}", objects, *values)
        for backbone, rows in {
            "Swin-B": ((95.6, 78.4, 11.8), (97.8, 85.3, 8.5), (97.2, 84.9, 8.1), (97.3, 84.8, 8.2)),
            "Swin-L": ((96.4, 79.6, 15.0), (98.2, 88.7, 8.2), (97.2, 88.0, 7.9), (98.1, 88.6, 8.3)),
        }.items()
        for objects, values in zip(
            ("none", "COCO", "generated, curated", "generated, all"),
            rows,
            strict=True,
        )
    ],
)
