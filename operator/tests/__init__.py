"""A package: else pytest imports this folder below a module named `operator`, the standard library's."""
