"""Everything that touches Lightning: modules, data module, checkpoints, loggers."""
