"""What maintainers run to write generated files again: the reference pages, the price list, the locks."""
