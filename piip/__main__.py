"""`python -m piip`, e.g. under torchrun."""

from piip.cli.main import main

main()
