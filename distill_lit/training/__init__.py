"""The LightningModule and what trains it: loss, on-policy text, optimizer, checkpoints, loggers, callbacks."""
