// A classic script, which browsers also run where they load no modules: from a file, or if they are too old.
(function () {
  'use strict';
  var message = null;
  if (location.protocol === 'file:') {
    message =
      'This page was opened as a file, and browsers load neither its scripts nor its model from files. Serve its ' +
      'folder: run `python -m http.server` there, and open http://localhost:8000/.';
  } else if (!('noModule' in document.createElement('script')) || !window.fetch || !window.Worker) {
    message = 'This browser is too old for this page; take one of 2023 or later.';
  }
  if (message === null) return;
  document.getElementById('status').textContent = '';
  document.getElementById('progress').hidden = true;
  var problem = document.getElementById('problem');
  problem.textContent = message;
  problem.hidden = false;
})();
