"""A store on disk: its manifest, index, packed rows, overlay and journal."""
