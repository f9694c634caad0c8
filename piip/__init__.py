"""piip: Parameter-Inverted Image Pyramid Networks."""
