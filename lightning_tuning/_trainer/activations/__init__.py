"""What ``ActivationMonitor`` sees of a step, and how."""
