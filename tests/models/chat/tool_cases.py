"""Schemas of tools for tests."""

REFERRING = {
    "type": "object",
    "properties": {"colour": {"$ref": "#/$defs/Colour"}, "size": {"type": "integer", "maximum": 9}},
    "required": ["colour", "size"],
    "additionalProperties": False,
    "$defs": {"Colour": {"enum": ["red", "blue"]}},
}
