"""Search over pages: the engine, filters, fusion, and a room for each kind of retriever."""
