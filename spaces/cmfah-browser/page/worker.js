/** The worker of the page: answers its requests one after the other. */

import { Engine } from './engine.js';
import { PageError } from './files.js';

const engine = new Engine((message) => postMessage(message));
let queue = Promise.resolve();

function sentence(error) {
  if (error instanceof PageError) return error.message;
  console.error(error);
  return 'Something went wrong; load the page again. The console of the browser has the error.';
}

function enqueue(work) {
  const done = queue.then(work);
  queue = done.catch(() => {});
  return done;
}

async function load() {
  try {
    await engine.load();
    await engine.loadImages(enqueue);
  } catch (error) {
    postMessage({ problem: sentence(error) });
  }
}

onmessage = ({ data: { number, ...request } }) => {
  enqueue(async () => {
    try {
      postMessage({ number, answer: await engine.answer(request) });
    } catch (error) {
      postMessage({ number, problem: sentence(error) });
    }
  });
};

load();
