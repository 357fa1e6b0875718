"""Materials: from geometry features to color."""

from threestudio.models.materials import (
    base,
    diffuse_with_point_light_material,
    neural_radiance_material,
    no_material,
)

__all__ = ["base", "diffuse_with_point_light_material", "neural_radiance_material", "no_material"]
