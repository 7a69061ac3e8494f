"""Which student layer learns from which teacher layer.

Layers count from 1; layer 0 is the embedding output. A map is a list of pairs (student, teacher).
"""

from __future__ import annotations

LayerMap = list[tuple[int, int]]


def layer_map(spec: str | list[int], student_layers: int, teacher_layers: int) -> LayerMap:
    """Build the map.

    Args:
        spec: `uniform` (student layer i learns from round(i N / M), the embedding from the
            embedding; TinyBERT's map where M divides N), `last` (the last layer alone, as in
            MiniLM), or for each student layer the teacher's, such as [3, 6, 9, 12].
        student_layers: M.
        teacher_layers: N.

    Raises ValueError where there is no such map.
    """
    if student_layers > teacher_layers:
        raise ValueError(
            f"student.layers: {student_layers} is more than the teacher's {teacher_layers}; "
            "give as many or fewer"
        )
    if spec == "last":
        return [(student_layers, teacher_layers)]
    if spec == "uniform":
        half = student_layers // 2  # rounds halves up, in integers
        chosen = [(i * teacher_layers + half) // student_layers for i in range(1, student_layers + 1)]
    elif isinstance(spec, list):
        chosen = spec
    else:
        raise ValueError(f"objective.layer_map: {spec}; give uniform, last or a list of layers")
    if len(chosen) != student_layers:
        raise ValueError(
            f"objective.layer_map: {chosen} names {len(chosen)} layers and the student has "
            f"{student_layers}; name one teacher layer for each"
        )
    if any(not 1 <= layer <= teacher_layers for layer in chosen):
        raise ValueError(
            f"objective.layer_map: {chosen} leaves the teacher's layers, 1 to {teacher_layers}"
        )
    return [(0, 0), *enumerate(chosen, 1)]
