"""An expert for questions whose evidence boxes are known: search, zoom, answer."""

from vrag_jax.data.pageworld.transcripts import box_around, box_text
from vrag_jax.data.records import Question
from vrag_jax.experts.scripted import ExpertState
from vrag_jax.perception.frames import Frame


class EvidenceExpert:
    """Searches with the question, zooms into the evidence, gives the reference answer.

    Args:
      margin: encoder pixels added to an evidence box on each side.
    """

    def __init__(self, margin: int = 2):
        self._margin = margin

    def act(self, question: Question, state: ExpertState) -> str:
        """Returns the text of the next turn.

        A page without evidence is passed over by searching again, which brings the
        next one; a turn that brought no image ends the search.
        """
        if state.turns > len(state.shown):
            return '<think> not found.</think><answer>none</answer>'
        if not state.shown:
            return f'<think> search.</think><search>{question.query}</search>'
        frame = state.shown[-1]
        if not frame.shows_whole_page:
            return f'<think>{question.answer}.</think><answer>{question.answer}</answer>'
        for evidence in question.evidence:
            if evidence.page_id == frame.page_id:
                box = self._box(frame, evidence.bbox)
                return f'<think> zoom.</think><bbox>{box}</bbox>'
        return f'<think> other page.</think><search>{question.query}</search>'

    def _box(self, frame: Frame, region: tuple[float, float, float, float]) -> str:
        return box_text(box_around(frame, region, self._margin))
