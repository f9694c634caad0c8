"""Parts of the DINO detection head."""
