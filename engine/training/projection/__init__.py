"""Threat image projection: threats multiplied into benign images, as X-rays are."""
