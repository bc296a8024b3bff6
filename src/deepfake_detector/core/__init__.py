"""Pure policy: no input or output, no heavy imports, everything testable by a table."""
