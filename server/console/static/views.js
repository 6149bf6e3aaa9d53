/** The views of the console: a new one is one entry here. */

/**
 * @typedef {object} View
 * @property {string} path the first step behind '#/'; what follows is the view's own
 * @property {string} title in the navigation
 * @property {string} icon a name of ui/icons.js
 * @property {import('./core/access.js').Right} [needs] what the key must be allowed to do
 * @property {string} [feature] what the server must offer, by its name in GET /v1/access
 * @property {string[]} [styles] its own style sheets, by their paths here
 * @property {() => Promise<{default: any}>} load its module: a component that is given { path, params }
 */

/** @type {View[]} */
export const VIEWS = [
  {
    path: 'playground', title: 'Playground', icon: 'chat', needs: 'infer', styles: ['styles/models.css', 'views/playground/style.css'],
    load: () => import('./views/playground/view.js'),
  },
  {
    path: 'arena', title: 'Arena', icon: 'arena', needs: 'infer', styles: ['styles/models.css', 'views/arena/style.css'],
    load: () => import('./views/arena/view.js'),
  },
  { path: 'fleet', title: 'Fleet', icon: 'fleet', needs: 'manage', styles: ['views/fleet/style.css'], load: () => import('./views/fleet/view.js') },
  {
    path: 'jobs', title: 'Jobs', icon: 'jobs', needs: 'infer', feature: 'training', styles: ['views/jobs/style.css'],
    load: () => import('./views/jobs/view.js'),
  },
  {
    path: 'operations', title: 'Operations', icon: 'operations', needs: 'admin', styles: ['views/operations/style.css'],
    load: () => import('./views/operations/view.js'),
  },
  { path: 'server', title: 'Server', icon: 'server', load: () => import('./views/server/view.js') },
];
