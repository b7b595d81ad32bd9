"""Where the model looked: regions and overlays from the class map that class scores come from."""

from .explaining import Explainer, Explanation
from .overlay import overlay
from .regions import Region, hottest, regions_of

__all__ = ["Explainer", "Explanation", "Region", "hottest", "overlay", "regions_of"]
