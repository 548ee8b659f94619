"""What a program does with a supervised server: lease it, wait for it, stop it."""
