"""What maintainers run to regenerate files: the reference pages, the price list, the locks."""
