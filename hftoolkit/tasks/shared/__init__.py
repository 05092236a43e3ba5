"""What several tasks use: losses, augmentation, baselines."""
