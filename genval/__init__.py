"""GenVal: measure how far a street-scene segmenter can be trusted in conditions nobody has labelled."""
