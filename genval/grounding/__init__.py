"""Objects found by their name and outlined: GroundingDINO and Segment Anything, through transformers."""
