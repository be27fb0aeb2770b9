"""The Terminal Velocity Matching recipe and the measurement of what it made."""
