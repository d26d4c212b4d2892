"""The machine: what depends on processor, C library or system, each with a reason and a switch."""
