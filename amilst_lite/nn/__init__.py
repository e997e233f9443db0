"""Layers, autoencoders, discriminators and the whole AMIL-ST network."""
