"""How fast it is, where the time goes, and what it takes to install and start."""
