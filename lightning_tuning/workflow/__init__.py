"""What puts the callbacks together: checks before a fit, a list for a fit, a report after it."""
