"""Trials: what users, disks and attackers do to mdrelax, as commands that run for as long as you like."""
