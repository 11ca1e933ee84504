"""What changes clips at random while training."""
