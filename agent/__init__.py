"""The device agent: WHO measures on a board, where neither torch nor paretune is installed."""
