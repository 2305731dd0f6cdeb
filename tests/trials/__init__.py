"""Hard trials as commands: each runs for as long as it is told to, and stores what it found."""
