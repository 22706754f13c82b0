"""The only folder that knows the inside of Lightning's Trainer."""
