"""Errors of a request, as reported to its sender."""


class RequestError(Exception):
    """A request that is not carried out.

    Attributes:
      status: HTTP status.
      field: what of the request is wrong; '' if it is nothing that was sent.
      message: what is wrong with it.
      headers: of the answer.
    """

    def __init__(self, status: int, field: str, message: str,
                 headers: dict[str, str] | None = None):
        super().__init__(f'{field}: {message}' if field else message)
        self.status = status
        self.field = field
        self.message = message
        self.headers = headers or {}
