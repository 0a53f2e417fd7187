"""What the policy does and sees: actions, coordinate frames, crop and zoom."""
