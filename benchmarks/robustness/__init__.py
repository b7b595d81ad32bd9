"""What kills, long archives and interrupted scans do to time, memory and rows."""
