"""Where training runs, and checkpoints of an interrupted one."""
