"""Retraining of pruned models: ReSt, where training runs, and checkpoints of an interrupted one."""
