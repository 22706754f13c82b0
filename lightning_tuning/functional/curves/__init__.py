"""What loss curves mean."""
