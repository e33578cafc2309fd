"""How models/demo was made: phrases -> data -> vocab -> net -> export -> measure."""
