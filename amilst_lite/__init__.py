"""Spatial domains in spatial transcriptomics: AMIL-ST on plain PyTorch."""
