"""Parts of the detection heads."""
