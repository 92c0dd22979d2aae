"""What every trained module shares: optimization, batches over devices, checkpoints."""
