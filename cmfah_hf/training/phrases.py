"""Everyday phrases, by which a compression of images alone chooses the center of texts.

The images and the texts of a dual encoder lie in two clouds, and each has a center of its own (`[projection]` in
docs/method.md). Texts of the user's kind give a better one, if there are any.
"""

_THINGS = """
dog cat horse cow sheep bird fish bear elephant monkey butterfly flower tree forest leaf grass field garden park
mountain hill river lake sea beach island desert snow sky cloud sunset rain storm moon city street road bridge
building house church tower castle window door room kitchen bedroom bathroom table chair sofa bed lamp clock book
newspaper letter computer phone camera television car bus truck train plane boat bicycle motorcycle wheel traffic
man woman child baby girl boy family friends crowd couple face hand eye hair hat shirt dress shoe bag glasses food
bread fruit apple banana orange vegetable salad soup pizza cake cheese meat egg coffee tea wine bottle cup plate
knife market shop restaurant hotel school hospital office factory farm station airport stadium museum theater music
guitar piano dance party wedding birthday game football basketball tennis swimming running skiing painting drawing
statue toy doll ball kite balloon flag map sign poster screen machine tool engine
""".split()  # noqa: SIM905  # a word a line would take 160
_FORMS = ("a photo of a {}", "a {} in the distance", "two people and a {}")

PHRASES = tuple(form.format(thing) for thing in _THINGS for form in _FORMS)
