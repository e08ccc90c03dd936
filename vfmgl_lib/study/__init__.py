"""A study: opened (`workspace`), run (`training`), kept and read (`study`)."""
