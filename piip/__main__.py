"""`python -m piip`, e.g. under torchrun."""

from piip.cli import main

main()
