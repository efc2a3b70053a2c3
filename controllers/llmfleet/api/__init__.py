"""The contract shared by all flows: typed specs, parsing, conditions, reasons and the backends document."""
