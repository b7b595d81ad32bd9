"""Tars of every make, read forwards in bounded memory."""
