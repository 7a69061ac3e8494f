"""Everything that trains: teacher, student, objective, engine, and the jobs made of them."""
