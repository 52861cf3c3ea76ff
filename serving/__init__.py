"""How answers leave: the Bento, its HTTP API and the process that runs it. The only room that imports bentoml."""
