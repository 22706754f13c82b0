"""Short trainings behind ``OverfitBatchCheck``, and the settings that spoil them."""
